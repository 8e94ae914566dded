"""Export of dual encoders to ONNX Runtime and OpenVINO."""
