"""Tower features on disk: sharded safetensors read by the frame, addressed by what they were made from."""
