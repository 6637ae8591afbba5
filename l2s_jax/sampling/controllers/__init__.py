"""What may steer a row inside the compiled loop; every part is pure, its settings traced arrays."""
