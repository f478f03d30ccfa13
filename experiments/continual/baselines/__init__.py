"""The methods that users would pick instead, told the boundaries as their authors meant."""
