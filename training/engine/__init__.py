"""How a run trains: devices, compiled steps, the loop, checkpoints, and the folder of the run."""
