"""What simulated weather is made of: the atmosphere, a member of the ensemble, the record."""
