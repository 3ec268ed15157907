"""What compare.py consists of: the folder of a study, its cells, and what is made of their numbers."""
