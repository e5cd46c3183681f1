"""What of a run is kept on the disk while it goes, and when may it go on from there?"""
