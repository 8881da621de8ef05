"""Who may ask what: keys and their rights, tenants' quotas, requests that a web page caused, and what admins did."""
