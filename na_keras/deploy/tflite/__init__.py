"""TFLite files: converting, rewriting, reading and running them. ai-edge-litert is imported where it is used."""
