"""Where images come from: files, the hub, and the embedded digits, as checked uint8 tensors."""
