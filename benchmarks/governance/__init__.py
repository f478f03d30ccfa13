"""Latency added by governance with SAFi and with other libraries, over HTTP and with concurrent turns."""
