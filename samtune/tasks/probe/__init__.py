"""How well does a model answer prompts, before and after it is tuned?"""
