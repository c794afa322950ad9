"""HTTP and WebSockets: from bytes on one port to calls of the domain, and back."""
