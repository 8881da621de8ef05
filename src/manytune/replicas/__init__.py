"""One server made of many: replicas of it behind a front that sends each adapter's requests to the same one."""
