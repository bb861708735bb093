#!/bin/sh
# A web server with a certificate of its own making, on 80 and 443, for whatever name is asked. May run any number of times.
set -eu

if ! command -v nginx >/dev/null || ! command -v openssl >/dev/null; then
    apt-get -q update
    apt-get -q -y install --no-install-recommends nginx-light openssl
fi
if [ ! -s /etc/nginx/peer.pem ]; then
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=peer \
        -addext 'subjectAltName=DNS:*.example,DNS:peer' -keyout /etc/nginx/peer.key -out /etc/nginx/peer.pem 2>/dev/null
fi
cat >/etc/nginx/conf.d/peer.conf <<'CONF'
server {
    listen 80 default_server;
    listen 443 ssl default_server;
    ssl_certificate /etc/nginx/peer.pem;
    ssl_certificate_key /etc/nginx/peer.key;
    location / { return 200 "the peer\n"; }
}
CONF
rm -f /etc/nginx/sites-enabled/default
systemctl enable --quiet nginx
systemctl restart nginx

grep -q ' enforcer$' /etc/hosts || echo "$ENFORCER enforcer" >>/etc/hosts
