"""The programs that stand on the runtime: command line, server, bench. The core imports none of them."""
