"""How the embedded voice `nano` was made: one stage a file, each resumes, each deterministic by its seed."""
