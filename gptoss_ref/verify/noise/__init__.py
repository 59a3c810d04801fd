"""How far rounding alone takes the numbers of a correct run: errors, noise floors, routing ties."""
