"""What the programs about detectors share: recipes, runs, the training loop."""
