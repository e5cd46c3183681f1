"""How are pictures of other than 8 bits, or other than grey and RGB, read?"""
