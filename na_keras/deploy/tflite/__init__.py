"""TFLite files: converting, rewriting, reading and running them."""
