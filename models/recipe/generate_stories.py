"""Text for the built-in model: short stories sampled from stories260K (MIT), temperature 0.8, starting at BOS, into stories.txt.
usage: generate_stories.py SEED SECONDS FOLDER   (FOLDER holds stories260K.bin and tok512.bin)"""
import struct,sys,time,numpy as np,jax,jax.numpy as jnp
from functools import partial
d=open(sys.argv[3]+'/stories260K.bin','rb').read(); dim,hid,L,H,KV,V,S=struct.unpack('7i',d[:28]); V=abs(V); hd=dim//H; kvd=KV*hd
f=np.frombuffer(d[28:],np.float32); o=0
def take(*s):
    global o; n=int(np.prod(s)); r=jnp.array(f[o:o+n].reshape(s)); o+=n; return r
E=take(V,dim);ra=take(L,dim);wq=take(L,dim,dim);wk=take(L,kvd,dim);wv=take(L,kvd,dim);wo=take(L,dim,dim);rf=take(L,dim);w1=take(L,hid,dim);w2=take(L,dim,hid);w3=take(L,hid,dim);rn=take(dim)
t=open(sys.argv[3]+'/tok512.bin','rb').read(); p=4; toks=[]
while p<len(t):
    s,n=struct.unpack('fi',t[p:p+8]); p+=8; toks.append(t[p:p+n]); p+=n
rms=lambda x,w: x*jax.lax.rsqrt((x*x).mean(-1,keepdims=True)+1e-5)*w
fr=1/10000**(jnp.arange(0,hd,2)/hd)
def rope(q,pos):
    c,s=jnp.cos(pos*fr),jnp.sin(pos*fr); a,b=q[...,0::2],q[...,1::2]
    return jnp.stack([a*c-b*s,a*s+b*c],-1).reshape(q.shape)
B,T=512,320
def step(carry,pos):
    tok,K,Vc,key=carry; x=E[tok]
    for l in range(L):
        h=rms(x,ra[l]); q=rope((h@wq[l].T).reshape(B,H,hd),pos); k=rope((h@wk[l].T).reshape(B,KV,hd),pos); v=(h@wv[l].T).reshape(B,KV,hd)
        K=K.at[l,:,pos].set(k); Vc=Vc.at[l,:,pos].set(v)
        kk=jnp.repeat(K[l],H//KV,2); vv=jnp.repeat(Vc[l],H//KV,2)
        a=jnp.einsum('bhd,bthd->bht',q,kk)/hd**.5; a=jnp.where(jnp.arange(T)[None,None]<=pos,a,-1e30); a=jax.nn.softmax(a,-1)
        x=x+jnp.einsum('bht,bthd->bhd',a,vv).reshape(B,dim)@wo[l].T
        h=rms(x,rf[l]); x=x+(jax.nn.silu(h@w1[l].T)*(h@w3[l].T))@w2[l].T
    lg=rms(x,rn)@E.T/0.8
    key,k2=jax.random.split(key); nt=jax.random.categorical(k2,lg)
    return (nt,K,Vc,key),nt
@jax.jit
def gen(key):
    c=(jnp.ones(B,jnp.int32),jnp.zeros((L,B,T,KV,hd)),jnp.zeros((L,B,T,KV,hd)),key)
    _,ys=jax.lax.scan(step,c,jnp.arange(T)); return ys.T
def dec(ids):
    b=b''
    for i in ids:
        if i in (1,2): break
        x=toks[i]
        b+= bytes([int(x[3:5],16)]) if len(x)==6 and x[:3]==b'<0x' else x
    return b.decode('utf8','replace').strip()
out=open('stories.txt','a'); n=0; t0=time.time(); r=int(sys.argv[1])
while time.time()-t0<float(sys.argv[2]):
    ys=np.array(gen(jax.random.PRNGKey(r))); r+=1
    for y in ys:
        s=dec(y)
        if 80<len(s) and '\ufffd' not in s:
            e=max(s.rfind('. '),s.rfind('." '),s.rfind('.')); s=s[:e+1]
            if s.endswith('.') or s.endswith('"'): out.write(s.replace('\n',' ')+'\n'); n+=1
    out.flush(); print(r,n,round(time.time()-t0,1),out.tell(),flush=True)
