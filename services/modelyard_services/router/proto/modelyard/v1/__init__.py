"""The gRPC contract `modelyard.v1` and the code generated from it."""
