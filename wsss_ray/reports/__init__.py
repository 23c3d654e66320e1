"""What people look at: panels, charts, pages, comparisons."""
