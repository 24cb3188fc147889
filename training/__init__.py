"""How the voices that this repository ships were trained; see README.md. Neither pipeline nor runtime imports it."""
