"""Run untrusted programs. Of the rest of the package it imports only the errors and "did you mean"; it never imports torch."""
