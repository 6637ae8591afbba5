"""AutoL2S in JAX: models that know when a short chain of thought is enough."""

__version__ = "0.1.0"
