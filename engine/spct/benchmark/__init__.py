"""Measuring an engine on this machine: latency, throughput, start-up, and the physical floor that they are compared with."""
