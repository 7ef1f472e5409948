"""What is planted as a secret, and must come out nowhere."""

CANARY = "canary-6f1d2c"
