"""What step_cost.py measures, in processes of their own, and its report."""
