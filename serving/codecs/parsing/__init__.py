"""Parsing of request bodies within bounded memory and time, whatever they hold: what the codecs share."""
