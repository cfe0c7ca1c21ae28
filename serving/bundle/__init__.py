"""The bundle's format: manifest, golden cases, signatures, and which graphs are taken."""
