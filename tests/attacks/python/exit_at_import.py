# expected: failed
# Exit code 0 before any test has run.
import sys
sys.exit(0)
