"""How a run trains: devices, compiled steps, the loop, evaluation."""
