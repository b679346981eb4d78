"""A GPU driver for machines without one; on PYTHONPATH it takes the place of the module that binds NVML."""
