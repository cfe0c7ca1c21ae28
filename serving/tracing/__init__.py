"""Records of requests: access log, trace context, OpenTelemetry."""
