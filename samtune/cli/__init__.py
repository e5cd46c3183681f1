"""What does a user type?"""
