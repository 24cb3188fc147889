"""The stages from a released checkpoint to a verified OpenVINO bundle; one module for one stage."""
