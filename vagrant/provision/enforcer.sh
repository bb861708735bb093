#!/bin/sh
# Make the checkout in /sallyport run, and `sallyport` a command. May run any number of times.
set -eu

cd /sallyport
scripts/setup --no-opa

# Through sudo, because everything that touches the kernel needs root and `vagrant ssh` gives a user.
cat >/usr/local/bin/sallyport <<'SH'
#!/bin/sh
exec sudo /sallyport/.venv/bin/sallyport "$@"
SH
chmod 755 /usr/local/bin/sallyport

grep -q ' peer$' /etc/hosts || echo "$PEER peer" >>/etc/hosts
