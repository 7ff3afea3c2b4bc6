"""Run untrusted programs. Needs of the rest of the package only its errors and "did you mean"; never torch."""
