"""Programs built on the runtime: command line, server, bench. The core imports nothing from here."""
