"""The released code's command lines."""
