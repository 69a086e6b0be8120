"""Where slides run: in this process, or in processes of their own, so that a slide costs no other."""
