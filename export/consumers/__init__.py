"""Programs that run an export the way its users will: none of them imports na_keras or Keras."""
