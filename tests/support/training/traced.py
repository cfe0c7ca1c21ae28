"""What traced commands start with."""

LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
    up = struct.pack("16sH14x", b"lo", 1)
    fcntl.ioctl(device, 0x8914, up)  # SIOCSIFFLAGS, IFF_UP
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Brings up the loopback device of a new network namespace, and runs a command."""
