"""What every stage with a device shares: the loop that owns it, batches by deadline, captured passes. Knows no grpc and no model."""
