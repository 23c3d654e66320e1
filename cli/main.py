"""placeholder"""
def main():
    from wsss_ray.studies import __doc__ as d
    print(d)
