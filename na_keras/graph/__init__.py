"""What reads or rewrites the graph of a functional Keras model: modules put in, heat maps, counts of operations."""

from na_keras.graph.complexity import count_macs, count_parameters, paper_flops
from na_keras.graph.grad_cam import grad_cam
from na_keras.graph.insertion import insert_attention

__all__ = ["count_macs", "count_parameters", "grad_cam", "insert_attention", "paper_flops"]
