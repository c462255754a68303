"""Images as objects in a bucket: the `s3` store, on AWS, Ceph, Swift and everything else that speaks S3."""
