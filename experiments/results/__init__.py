"""From finished runs to numbers, tables, pictures and the report."""
