"""How do many runs become one table?"""
