#!/bin/sh
# Makes the certificates and keys of the tests in ../shapes.rs, with OpenSSL 3. They are
# committed: a test needs no openssl, and no key of these is of use to anybody.
set -eu
cd "$(dirname "$0")"
days=36500
authority='basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash'

# sign NAME SUBJECT ISSUER [EXTENSIONS]: a certificate for NAME.pkcs8.key
sign() {
    openssl req -new -key "$1.pkcs8.key" -subj "/O=shapes/CN=$2" |
        openssl x509 -req -days $days -CA "$3.crt" -CAkey "$3.pkcs8.key" \
            -extfile /dev/fd/3 -out "$1.crt" 3<<EXT
${4:-$authority}
EXT
}

# root NAME SUBJECT
root() {
    openssl req -new -x509 -days $days -key "$1.pkcs8.key" -subj "/O=shapes/CN=$2" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign \
        -out "$1.crt"
}

openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out root.pkcs8.key
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pkcs8.key
openssl rsa -in rsa.pkcs8.key -traditional -out rsa.pkcs1.key
for curve in P-256 P-384; do
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:$curve -out $curve.pkcs8.key
    # As `openssl ecparam -genkey` writes it, with the curve before the key.
    name=$(openssl ec -in $curve.pkcs8.key -noout -text 2>/dev/null | sed -n 's/ASN1 OID: //p')
    { openssl ecparam -name "$name"; openssl ec -in $curve.pkcs8.key; } >$curve.sec1.key
done
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out deep.pkcs8.key
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out leaf.pkcs8.key
openssl pkcs8 -topk8 -in P-256.pkcs8.key -passout pass:secret -out P-256.encrypted.key

root root "root"
sign rsa "intermediate RSA" root
sign P-256 "intermediate P-256" root
sign P-384 "intermediate P-384" root
sign deep "intermediate of P-256" P-256
sign leaf "no authority" root 'basicConstraints=critical,CA:FALSE'
# The same name and key again, as a renewal that keeps the key makes it.
openssl req -new -x509 -days $((days + 1)) -key root.pkcs8.key -subj "/O=shapes/CN=root" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign \
    -out root.renewed.crt
