"""One version of an exported model in the folder that TF Serving watches: written, checked, published."""
