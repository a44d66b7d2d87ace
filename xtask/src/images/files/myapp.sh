#!/bin/sh
# A web application on the two ports that the guides give to theirs; its page names its version and its pod.
mkdir -p /www
echo "myapp $VERSION on $HOSTNAME" > /www/index.html
echo ok > /www/health
echo ok > /www/ready
httpd -f -vv -p 8080 -h /www &
exec httpd -f -vv -p 3000 -h /www
